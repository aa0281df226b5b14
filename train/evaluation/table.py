"""The result of an evaluation as text: scores with floor and ceiling, detection, audio ablation, training data."""


def table(result: dict) -> str:
    """Return a result as text, each score with its floor and ceiling."""
    where = result["split"] + (f", only {result['only']}" if result["only"] else "")
    lines = [
        f"{result['model']} on {where}: {result['clips_scored']:,} of {result['clips_listed']:,} listed "
        f"clips scored, {result['clips_without_box']} without a usable box (list {result['listed_sha256'][:12]})",
        f"{'protocol':13} {'cIoU@0.5':>8}  {'95 % interval':13} {'floor':>6} {'ceiling':>8} "
        f"{'AUC':>8} {'floor':>6} {'ceiling':>8} {'pointing':>9}",
    ]
    for name, score in result["protocols"].items():
        floor, ceiling, (low, high) = score["floor"], score["ceiling"], score["interval"]["ciou"]
        lines.append(
            f"{name:13} {score['ciou']:8.3f}  {f'{low:.3f}–{high:.3f}':13} {floor['ciou']:6.3f} {ceiling['ciou']:8.3f} "
            f"{score['auc']:8.3f} {floor['auc']:6.3f} {ceiling['auc']:8.3f} {score['pointing']:9.3f}"
        )
    lines.append("floor: a disc in the middle of the frame; ceiling: the best that any map can reach on these boxes")
    lines += _detection_table(result["protocols"]) + _listening_lines(result) + _training_lines(result)
    if result["sheet"]:
        lines.append(f"picture: {result['sheet']}")
    return "\n".join(lines)


def _detection_table(protocols: dict[str, dict]) -> list[str]:
    """Return lines on how well negatives are detected, if there are any."""
    rows = [(name, score["negatives"], score["slavc"]) for name, score in protocols.items() if "slavc" in score]
    lines = [f"{'with negatives':14} {'AP':>7} {'max-F1':>7} {'LocAcc':>7}"] if rows else []
    for name, negatives, found in rows:
        for way, values in found.items():
            shown = [values[key] for key in ("ap", "max_f1", "loc_acc")]
            numbers = " ".join(f"{float('nan') if value is None else value:7.3f}" for value in shown)
            lines.append(f"{name:14} {numbers}  {way}, {negatives:,} negatives")
    return lines


def _listening_lines(result: dict) -> list[str]:
    """Return lines on the scores with other sounds, which show whether the model uses the audio."""
    lines = []
    for name, what in (("wrong_audio", "the sound of another class"), ("silence", "silence")):
        if name in result:
            other, (low, high) = result[name], result[name]["interval"]
            lines.append(
                f"with {what}: cIoU@0.5 {other['ciou']:.3f}, a drop of {other['drop']:.3f} ({low:.3f}–{high:.3f}); "
                f"pointing {other['pointing']:.3f}"
            )
    return lines


def _training_lines(result: dict) -> list[str]:
    """Return lines on which scored clips the checkpoint was trained on, and how it was chosen."""
    if (trained := result.get("trained_on")) is None:
        return []
    leak = trained["leak"]
    lines = [f"trained on {trained['split']} ({trained['samples']:,} clips), step {trained['step']:,}"]
    if trained["select_on"]:
        lines[0] += f"; its epoch was chosen by the score on {trained['select_on']}"
    if leak["clips"] or leak["videos"]:
        lines.append(f"LEAK: trained on {leak['clips']:,} of the scored clips, on {leak['videos']:,} of their videos")
    return lines
