"""The figures beside their targets, as text or as markdown."""

from measure import LAYERS, Bench

Row = tuple[str, str, str, bool | None]


def rows(bench: Bench) -> list[Row]:
    """(what, figure, target, whether it is met) for one size of one UNet."""
    layers = LAYERS[bench.arch]
    applying, call = bench.applying(), bench.calling()
    compiling = None if bench.full else bench.compiling()  # what is traced is the same at any width
    operations, time, held = call["operations"] / layers, call["ratio"] - 1, call["held"] / bench.adapter_bytes
    second = applying["weight"] / applying["first"]
    found: list[Row] = [
        (
            "time of a model call",
            f"{time:+.1%} ({call['without'] * 1e3:.1f} -> {call['took'] * 1e3:.1f} ms)",
            "" if bench.full else "at most +6 %",
            None if bench.full else time <= 0.06,
        ),
        ("operations added per patched layer", f"{operations:.2f} ({call['operations']} in {layers} layers)", "at most 7", operations <= 7),
        ("host synchronisations added", f"{call['syncs']}", "none in a layer", call["syncs"] == 0),
        ("the same with a start_at", f"{call['windowed_syncs']}", "at most 1 in a call", call["windowed_syncs"] <= 1),
        ("FLOPs added", f"{call['flops'] / 1e6:.1f} M ({call['flops'] / call['base_flops']:+.2%})", "", None),
        (
            "held by the patch",
            f"{call['held'] / 1e6:.2f} MB of the adapter's {bench.adapter_bytes / 1e6:.0f} MB ({held:.2%})",
            "under 2 %" if bench.full else "",
            held < 0.02 if bench.full else None,
        ),
        ("first apply", f"{applying['first']:.3f} s", "", None),
        ("apply with another weight", f"{applying['weight']:.4f} s ({second:.2%} of the first)", "under 5 %", second < 0.05),
        ("apply with another picture", f"{applying['picture']:.3f} s", "", None),
    ]
    if compiling:
        breaks, again = compiling["breaks"], compiling["weights"]
        found += [
            ("graph breaks added (torch.compile)", f"{breaks} (the UNet alone: {compiling['without']})", "none", breaks == 0),
            ("graphs compiled anew for 4 more weights", f"{again}", "at most 1", again <= 1),
            ("graphs compiled anew for another picture", f"{compiling['picture']}", "none", compiling["picture"] == 0),
        ]
    return found


def print_tables(bench: Bench, markdown: bool) -> None:
    met = {None: "", True: "met", False: "MISSED"}
    figures = [(what, figure, target, met[ok]) for what, figure, target, ok in rows(bench)]
    print_table(bench.title, ("", "figure", "target", ""), figures, markdown)
    growth = [
        (f"{one.pictures}", f"{one.stacked}", f"{one.ratio - 1:+.1%}", f"{one.operations:.1f}", f"{one.held / 1e6:.2f} MB", f"{one.first:.3f} s", f"{one.second:.3f} s")
        for one in bench.growth()
    ]  # fmt: skip
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
