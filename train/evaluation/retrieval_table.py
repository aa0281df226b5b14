"""The scores of a retrieval as text."""

from avpipe.train.evaluation.retrieval_scores import ACCURACY, PRECISION, TASKS


def table(result: dict) -> str:
    """Return a result as text: each score with chance level."""
    names = (*ACCURACY, *PRECISION)
    lines = [
        f"{result['model']} on {result['split']}: {result['clips_scored']:,} of {result['clips_listed']:,} listed "
        f"clips of {result['categories']} categories, {result['clips_without_label']} without a label left out "
        f"(list {result['listed_sha256'][:12]})",
        f"{'':13} " + " ".join(f"{name:>6} {'chance':>7}" for name in names),
    ]
    for task, arrow in TASKS.items():
        if task in result:
            scores = result[task]
            numbers = " ".join(f"{scores[name]:6.3f} {scores['chance'][name]:7.3f}" for name in names)
            lines.append(f"{arrow:13} {numbers}")
    lines.append("A@K: any of the first K is of the category; P@K: fraction of the first K; chance: random order")
    if "cross_modal_retrieval" not in result:
        lines.append("the method is audio-only, so images are not searched")
    found = result.get("trained_on", {}).get("leak", {})
    if any(found.values()):
        lines.append(f"LEAK: trained on {found['clips']:,} of the scored clips, on {found['videos']:,} of their videos")
    return "\n".join(lines)
