"""Full-size tensor shapes of the published adapter files, typed from their trainers' sources, and files of such shapes without content."""

import json
import math

UNETS = {  # layer widths in key order (down, up, middle), context width
    "sd15": ([320] * 2 + [640] * 2 + [1280] * 5 + [640] * 3 + [320] * 3 + [1280], 768),
    "sd21": ([320] * 2 + [640] * 2 + [1280] * 5 + [640] * 3 + [320] * 3 + [1280], 1024),
    "sdxl": ([640] * 4 + [1280] * 50 + [640] * 6 + [1280] * 10, 2048),
    "ssd1b": ([640] * 4 + [1280] * 30 + [640] * 6, 2048),
}


def linear(key, out, features, bias=True):
    return {f"{key}.weight": (out, features)} | ({f"{key}.bias": (out,)} if bias else {})


def norm(key, width):
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}


def layers(unet, rank=0):
    widths, context = UNETS[unet]
    shapes = {}
    for i, width in enumerate(widths):
        shapes |= linear(f"{2 * i + 1}.to_k_ip", width, context, bias=False) | linear(f"{2 * i + 1}.to_v_ip", width, context, bias=False)
    for i, width in enumerate(widths) if rank else ():
        for n, text in ((2 * i, width), (2 * i + 1, context)):
            for part, features in (("q", width), ("k", text), ("v", text), ("out", width)):
                shapes |= linear(f"{n}.to_{part}_lora.down", rank, features, bias=False)
                shapes |= linear(f"{n}.to_{part}_lora.up", width, rank, bias=False)
    return shapes


def resampler(prefix, width, features, out, inner, tokens=16):
    shapes = {f"{prefix}latents": (1, tokens, width)} if tokens else {}
    shapes |= linear(f"{prefix}proj_in", width, features) | linear(f"{prefix}proj_out", out, width) | norm(f"{prefix}norm_out", out)
    for i in range(4):
        at = f"{prefix}layers.{i}."
        shapes |= norm(f"{at}0.norm1", width) | norm(f"{at}0.norm2", width) | norm(f"{at}1.0", width)
        shapes |= linear(f"{at}0.to_q", inner, width, bias=False) | linear(f"{at}0.to_kv", 2 * inner, width, bias=False)
        shapes |= linear(f"{at}0.to_out", width, inner, bias=False)
        shapes |= linear(f"{at}1.1", 4 * width, width, bias=False) | linear(f"{at}1.3", width, 4 * width, bias=False)
    return shapes


def standard(features, context):
    return linear("proj", 4 * context, features) | norm("norm", context)


def face(tokens, context):
    return linear("proj.0", 1024, 512) | linear("proj.2", tokens * context, 1024) | norm("norm", context)


def face_plus(tokens, context, features):
    return face(tokens, context) | resampler("perceiver_resampler.", context, features, context, context, tokens=0)


def flat(image_proj, ip_adapter, prefixes=("image_proj.", "ip_adapter.")):
    return {prefixes[0] + key: shape for key, shape in image_proj.items()} | {prefixes[1] + key: shape for key, shape in ip_adapter.items()}


def plus(unet):
    return resampler("", 1280 if unet == "sdxl" else 768, 1280, UNETS[unet][1], 1280 if unet == "sdxl" else 768)


FULL_FACE = linear("proj.0", 1280, 1280) | linear("proj.2", 768, 1280) | norm("proj.3", 768)

def xlabs(tokens, published=False):
    """Under the names that all files are brought to, or those of the published ones."""
    to = "double_blocks.{}.processor.ip_adapter_double_stream_{}_proj" if published else "ip_adapter.{}.to_{}_ip"
    proj = "ip_adapter_proj_model" if published else "image_proj"
    shapes = linear(f"{proj}.proj", tokens * 4096, 768) | norm(f"{proj}.norm", 4096)
    for i in range(19):
        for part in "kv":
            shapes |= linear(to.format(i, part), 3072, 4096)
    return shapes


def _flux_layers(bias=False):
    shapes = {}
    for i in range(57):
        shapes |= linear(f"{i}.to_k_ip", 3072, 4096, bias) | linear(f"{i}.to_v_ip", 3072, 4096, bias)
    return shapes


def _instantx():
    return flat(linear("proj.0", 2304, 1152) | linear("proj.2", 524288, 2304) | norm("norm", 4096), _flux_layers())


def _instant_character():
    norms = {f"{i}.norm_ip_{part}.weight": (128,) for i in range(57) for part in "qk"}
    return flat(resampler("", 1280, 2688, 4096, 1280), _flux_layers(bias=True) | norms)


def _sd3():
    timed = linear("time_embedding.linear_1", 1280, 320) | linear("time_embedding.linear_2", 1280, 1280)
    for i in range(4):
        timed |= linear(f"layers.{i}.2.1", 5120, 1280)
    blocks = {}
    for i in range(38):
        blocks |= linear(f"{i}.norm_ip.linear", 4864, 1280) | {f"{i}.{key}.weight": (64,) for key in ("norm_q", "norm_k", "norm_ip_k")}
        blocks |= linear(f"{i}.to_k_ip", 2432, 2432, bias=False) | linear(f"{i}.to_v_ip", 2432, 2432, bias=False)
    return flat(resampler("", 1280, 1152, 2432, 1280, tokens=64) | timed, blocks)


# published name: (shapes, bytes of its tensors in fp16 where the published file's size proves them, else None)
SUPPORTED = {
    "ip-adapter_sd15.safetensors": (flat(standard(1024, 768), layers("sd15")), 44_639_232),
    "ip-adapter_sd15_light_v11.bin": (flat(standard(1024, 768), layers("sd15")), 44_639_232),
    "ip-adapter_sd15_vit-G.safetensors": (flat(standard(1280, 768), layers("sd15")), 46_212_096),
    "ip-adapter-plus_sd15.safetensors": (flat(plus("sd15"), layers("sd15")), 98_174_976),
    "ip-adapter-plus-face_sd15.safetensors": (flat(plus("sd15"), layers("sd15")), 98_174_976),
    "ip_plus_composition_sd15.safetensors": (flat(plus("sd15"), layers("sd15")), 98_174_976),
    "ip-adapter-full-face_sd15.safetensors": (flat(FULL_FACE, layers("sd15")), None),
    "ip-adapter_sdxl.safetensors": (flat(standard(1280, 2048), layers("sdxl")), 702_570_496),
    "ip-adapter_sdxl_vit-h.safetensors": (flat(standard(1024, 2048), layers("sdxl")), 698_376_192),
    "ip-adapter-plus_sdxl_vit-h.safetensors": (flat(plus("sdxl"), layers("sdxl")), 847_497_728),
    "ip-adapter-plus-face_sdxl_vit-h.safetensors": (flat(plus("sdxl"), layers("sdxl")), 847_497_728),
    "ip_plus_composition_sdxl.safetensors": (flat(plus("sdxl"), layers("sdxl")), 847_497_728),
    "ip-adapter-faceid_sd15.bin": (flat(face(4, 768), layers("sd15", 128)), 96_709_632),
    "ip-adapter-faceid_sdxl.bin": (flat(face(4, 2048), layers("sdxl", 128)), 1_071_015_936),
    "ip-adapter-faceid-plus_sd15.bin": (flat(face_plus(4, 768, 1280), layers("sd15", 128)), 156_521_472),
    "ip-adapter-faceid-plusv2_sd15.bin": (flat(face_plus(4, 768, 1280), layers("sd15", 128)), 156_521_472),
    "ip-adapter-faceid-plusv2_sdxl.bin": (flat(face_plus(4, 2048, 1280), layers("sdxl", 128)), 1_487_415_296),
    "ip-adapter-faceid-portrait_sd15.bin": (flat(face(16, 768), layers("sd15")), 64_582_656),
    "ip-adapter-faceid-portrait-v11_sd15.bin": (flat(face(16, 768), layers("sd15")), 64_582_656),
    "ip-adapter-faceid-portrait_sdxl.bin": (flat(face(16, 2048), layers("sdxl")), 749_807_616),
    "ip-adapter-faceid-portrait_sdxl_unnorm.bin": (flat(resampler("", 1280, 512, 2048, 1280), layers("sdxl")), None),
    "ip_adapter_plus_general.bin": (flat(resampler("", 2048, 1024, 2048, 768), layers("sdxl")), 1_013_104_640),
    "ipa-faceid-plus.bin": (flat(face_plus(6, 4096, 1024), layers("sdxl")), None),
    "flux-ip-adapter.safetensors": (xlabs(4), 981_749_760),
    "flux-ip-adapter-v2.safetensors": (xlabs(16), 1_057_345_536),
    "instantx-flux-ip-adapter.bin": (_instantx(), 5_291_201_024),
    "instantx-sd3.5-large-ip-adapter.bin": (_sd3(), 1_595_851_776),
}


def _hunyuan():
    shapes = linear("ip_adapter_clip_len_trans_block", 8192, 1024) | norm("ip_adapter_img_norm_cond", 1024)
    for i in range(40):
        shapes |= linear(f"blocks.{i}.attn2.kv_proj_ip_adapter", 2816, 1024, bias=False) | norm(f"blocks.{i}.attn2.k_norm_ip_adapter", 88)
    return shapes


def _instruct():
    steps = linear("new_input_layers.0.0.to_q", 768, 768, bias=False) | linear("prompt_layers.0.0.to_q", 768, 768, bias=False)
    return flat(resampler("", 768, 1280, 768, 768) | steps | linear("proj_new_input", 768, 768), layers("sd15"))


def _csgo():
    parts = {f"{part}_image_proj.{key}": shape for part in ("content", "style") for key, shape in standard(1024, 2048).items()}
    return parts | {f"ip_adapter.{key}": shape for key, shape in layers("sdxl").items()}


def _art():
    shapes = {}
    for block in ("down_blocks.1.attentions.0.transformer_blocks.0.attn2", "up_blocks.0.attentions.0.transformer_blocks.0.attn2"):
        for part in "kv":
            shapes |= linear(f"{block}.processor.to_{part}_ip.0", 640, 2048, bias=False)
    return shapes | linear("encoder_hid_proj.image_projection_layers.0.image_embeds", 8192, 768)


READ = "adapters for SD1.5, SDXL, Kolors, Flux (XLabs, InstantX) and SD3.5 Large (InstantX) are read"
UNREAD = "no node here reads it; " + READ


def unread(model):
    return f"no node here reads adapters for {model} models; {READ}: take one of those, and its model"


# what it is: (shapes under the file's own names, family, the sentence that says so, bytes in fp16 as above)
FOREIGN = {
    "InstantCharacter": (_instant_character(), "flux-instantcharacter",
                         "this is an InstantCharacter adapter: no node here reads it; "
                         "for Flux the adapters by XLabs and InstantX are read", None),
    "Instruct": (_instruct(), "instruct", "this is an IP-Adapter-Instruct file: " + UNREAD, None),
    "MIP": (flat(standard(1280, 2048), layers("sdxl") | {"1.text_to_weight.weight": (1, 640)}), "mip",
            "this is a MIP-Adapter file: " + UNREAD, None),
    "CSGO": (_csgo(), "csgo", "this is a CSGO file: " + UNREAD, None),
    "HunyuanDiT": (_hunyuan(), "hunyuandit", "this is a HunyuanDiT adapter: " + unread("HunyuanDiT"), None),
    "Anima SigLIP2": ({"resampler.latents": (1, 32, 1024), "resampler.time_proj.weight": (1024, 320),
                       "ip_cross_attns.0.to_k_ip.weight": (2048, 2048)}, "anima-siglip2",
                      "this is an Anima adapter (SigLIP2): " + unread("Anima"), None),
    "Anima PE-Core": ({"ip_centroid": (1024,), "to_k_ip.0.weight": (2048, 1024), "ip_gate.0": ()}, "anima-pe-core",
                      "this is an Anima adapter (PE-Core): " + unread("Anima"), None),
    "Art": (_art(), "art", "this is an IP-Adapter-Art file: " + UNREAD, None),
    "SD2.1": (flat(standard(1024, 1024), layers("sd21")), "standard", "this is an adapter for SD2.x: " + unread("SD2.x"), None),
    "SSD-1B": (flat(standard(1280, 2048), layers("ssd1b")), "other",
               "this is an adapter for a UNet with 40 cross-attention layers and context width 2048 (SSD-1B): "
               "SD1.5 has 16 and 768, SDXL 70 and 2048; take an adapter for one of those, and its model", None),
}


def vision(hidden, projected, tokens, openclip=False):
    """A few tensors of an image encoder, those that tell its widths."""
    if openclip:
        return {"visual.positional_embedding": (tokens, hidden), "visual.proj": (hidden, projected),
                "visual.transformer.resblocks.0.attn.in_proj_weight": (3 * hidden, hidden)}
    shapes = {"vision_model.embeddings.position_embedding.weight": (tokens, hidden)} | norm("vision_model.pre_layrnorm", hidden)
    return shapes | ({"visual_projection.weight": (projected, hidden)} if projected else {})


def header(shapes, dtype="F16", size=2):
    """The safetensors header for these shapes, and the bytes of payload that it announces."""
    entries, at = {}, 0
    for key, shape in shapes.items():
        end = at + math.prod(shape) * size
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, at


def write_header(path, shapes):
    """A safetensors file of these shapes whose payload is a hole: full length, no blocks on the disk."""
    head, payload = header(shapes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + payload)
    return path
