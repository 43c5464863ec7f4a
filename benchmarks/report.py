"""The figures beside their targets, as text or as markdown."""

from layouts import CALLS, FRAMES, STARTS, STEPS, devices, equal_pictures, windows
from measure import LAYERS, Bench
from measure_blocks import Kind, Narrow, Wide
from measure_published import Published
from references import costs, curve_graphs

Row = tuple[str, str, str, bool | None]
MET = {None: "", True: "met", False: "MISSED"}


def rows(bench: Bench) -> list[Row]:
    """(what, figure, target, whether it is met) for one UNet; what does not depend on the width is counted in the tiny ones."""
    applying, call = bench.applying(), bench.calling()
    time, held, second = call["ratio"] - 1, call["held"] / bench.adapter_bytes, applying["weight"] / applying["first"]
    plain, added = call["flops"][0], call["flops"][1] - call["flops"][0]
    size = f"{call['held'] / 1e6:.2f} MB of the adapter's {bench.adapter_bytes / 1e6:.0f} MB ({held:.2%})"
    applied: list[Row] = [
        ("first apply", f"{applying['first']:.2f} s", "", None),
        ("apply with another weight", f"{applying['weight']:.4f} s ({second:.2%} of the first)", "under 5 %", second < 0.05),
        ("apply with another picture", f"{applying['picture']:.2f} s", "", None),
        ("FLOPs added to a model call", f"{added / 1e6:.1f} M ({added / plain:+.2%})", "", None),
    ]
    took = f"{time:+.1%} ({call['without'] * 1e3:.0f} -> {call['with'] * 1e3:.0f} ms)"
    if bench.full:
        return [("time of a model call", took, "", None), ("held by the patch", size, "under 2 %", held < 0.02), *applied]
    count, compiling, layers = bench.counting(), bench.compiling(), LAYERS[bench.arch]
    each, breaks, again = count["operations"] / layers, compiling["breaks"], compiling["weights"]
    return [
        ("time of a model call", took, "at most +6 %", time <= 0.06),
        ("operations added per patched layer", f"{each:.2f} ({count['operations']} in {layers} layers)", "at most 7", each <= 7),
        ("host synchronisations added", f"{count['syncs']}", "none in a layer", count["syncs"] == 0),
        ("the same with a start_at", f"{count['windowed']}", "at most 1 in a call", count["windowed"] <= 1),
        ("graph breaks added (torch.compile)", f"{breaks} (the UNet alone: {compiling['without']})", "none", breaks == 0),
        ("graphs compiled anew for 4 more weights", f"{again}", "at most 1", again <= 1),
        ("graphs compiled anew for another picture", f"{compiling['picture']}", "none", compiling["picture"] == 0),
        ("held by the patch", size, "", None),
        *applied,
    ]


def layout_rows(bench: Bench) -> list[Row]:
    """The same for layouts: of an animation, of several devices, of latents that are alike."""
    made, resized = windows(bench)
    anew, single, many = devices(bench), equal_pictures(bench, 1), equal_pictures(bench, 64)
    frames = f"{FRAMES} frames in {len(STARTS)} windows, {STEPS} steps"
    return [
        (f"windows: layouts made for {frames}", f"{made}", f"{len(STARTS)}", made == len(STARTS)),
        ("windows: masks brought to a grid", f"{resized}", f"at most {4 * FRAMES}, each once a level", resized <= 4 * FRAMES),
        (f"MultiGPU: layouts made in {CALLS} calls on two devices", f"{anew}", "2", anew == 2),
        ("64 latents with equal pictures", f"{many / 1e6:.2f} MB held, one latent {single / 1e6:.2f} MB", "the same", many == single),
    ]


def reference_tables(bench: Bench, markdown: bool) -> None:
    """What Image Prompt costs; at most 8 operations per layer side by side, whatever the number."""
    lines = []
    for one in costs(bench):
        target, ok = one.target
        figures = f"{one.ratio - 1:+.1%}", f"{one.operations:.2f}", target, MET[ok], f"{one.syncs}", f"{one.held / 1e6:.2f} MB"
        lines.append((one.kind, *figures))
    head = ("", "time of a call", "operations per layer", "target", "", "host synchronisations", "held")
    print_table(f"{bench.title}: Image Prompt", head, lines, markdown)
    breaks, graphs = curve_graphs(bench)
    print(f"A curve under torch.compile: {breaks} graph breaks added; graphs made new at five steps: {', '.join(map(str, graphs))}\n")


ONCE = 8  # operations of a model call outside its blocks, such as reading the timestep


def narrow_rows(bench: Narrow) -> list[Row]:
    found, count = bench.measure(), sum(bench.kind.blocks.values())
    operations, second = found["operations"], found["second"] / found["first"]
    added = f"{operations / count:.2f} ({operations:.0f} in {count} blocks and once in the call)"
    took = f"{found['ratio'] - 1:+.1%} ({found['without'] * 1e3:.0f} -> {found['with'] * 1e3:.0f} ms)"
    return [
        ("time of a model call", took, "", None),
        ("operations added per patched block", added, "at most 8 in a block", operations <= 8 * count + ONCE),
        ("host synchronisations added", f"{found['syncs']:.0f}", "none in a block", found["syncs"] <= 2),
        ("the same with an end_at", f"{found['windowed']:.0f}", "none in a block", found["windowed"] <= 2),
        ("graph breaks added (torch.compile)", f"{found['breaks']:.0f}", "none", found["breaks"] == 0),
        ("graphs compiled anew for 3 more weights", f"{found['again']:.0f}", "at most 1", found["again"] <= 1),
        ("held by the patch", f"{found['held'] / 1e6:.2f} MB", "", None),
        ("first apply", f"{found['first']:.3f} s", "", None),
        ("apply with another weight", f"{found['second']:.4f} s ({second:.0%} of the first, without an encoder)", "", None),
    ]


def wide_rows(kind: Kind, stream: str, repetitions: int) -> list[Row]:
    found = Wide(kind, stream).measure(repetitions)
    took = f"{found['ratio'] - 1:+.1%} ({found['without'] * 1e3:.0f} -> {found['with'] * 1e3:.0f} ms)"
    return [
        (f"{stream} block: time", took, "", None),
        (f"{stream} block: operations added", f"{found['operations']:.0f}", "at most 8", found["operations"] <= 8),
        (f"{stream} block: FLOPs added", f"{found['flops']:+.2%}", "", None),
        ("K and V of both sides in all blocks, bf16", f"{found['held'] / 1e6:.2f} MB", "", None),
    ]


def published_rows(kind: Kind) -> list[Row]:
    found = Published(kind).measure()
    share, held = found["second"] / found["first"], f"{found['held'] / 1e6:.2f} MB of the adapter's {found['adapter'] / 1e6:.0f} MB"
    timed = ", with K and V of one timestep" if kind.family == "sd3-instantx" else ""
    return [
        (f"first apply{timed}, without an encoder", f"{found['first']:.2f} s", "", None),
        ("apply with another weight", f"{found['second']:.4f} s ({share:.2%} of the first)", "under 5 %", share < 0.05),
        ("apply with another picture", f"{found['picture']:.2f} s", "", None),
        ("memory taken while it is applied first", f"{found['peak'] / 1e6:.0f} MB", "", None),
        ("held by the patch", f"{held} ({found['held'] / found['adapter']:.2%})", "", None),
    ]


def print_transformer(kind: Kind, full: bool, repetitions: int, markdown: bool) -> None:
    if full:
        title, found = f"{kind.name}, {kind.width} wide: one block of each stream in fp32, applying in bf16", []
        for stream in kind.blocks:
            found += [row for row in wide_rows(kind, stream, min(repetitions, 15)) if row not in found]
        found += published_rows(kind)
    else:
        title, found = f"{kind.name}, narrow, fp32", narrow_rows(Narrow(kind, repetitions))
    print_table(title, ("", "figure", "target", ""), [(what, figure, target, MET[ok]) for what, figure, target, ok in found], markdown)


def print_tables(bench: Bench, markdown: bool) -> None:
    figures = [(what, figure, target, MET[ok]) for what, figure, target, ok in rows(bench)]
    print_table(bench.title, ("", "figure", "target", ""), figures, markdown)
    if bench.full:
        return
    if bench.insightface is None:
        layouts = [(what, figure, target, MET[ok]) for what, figure, target, ok in layout_rows(bench)]
        print_table(f"{bench.title}: layouts", ("", "figure", "target", ""), layouts, markdown)
        reference_tables(bench, markdown)
    growth = []
    for one in bench.growth():
        counts = f"{one.pictures}", f"{one.stacked}", f"{one.ratio - 1:+.1%}", f"{one.operations:.1f}", f"{one.held / 1e6:.2f} MB"
        growth.append((*counts, f"{one.first:.2f} s", f"{one.second:.3f} s"))
    head = ("pictures", "adapters", "time of a call", "operations per layer", "held", "first apply", "another weight")
    print_table(f"{bench.title}: more pictures, more adapters", head, growth, markdown)


def print_table(title: str, head: tuple[str, ...], lines: list[tuple[str, ...]], markdown: bool) -> None:
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    print(f"**{title}**\n" if markdown else title)
    for number, line in enumerate([head, *lines]):
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("| " + " | ".join(cells) + " |" if markdown else "  " + "  ".join(cells).rstrip())
        if markdown and number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print(flush=True)
