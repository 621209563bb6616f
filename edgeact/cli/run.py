"""`edgeact run`: what happens in a video, window by window."""

import json
from pathlib import Path

import click

__all__ = ["command"]


@click.command("run")
@click.argument("bundle")
@click.argument("video")
@click.option("--hop", type=click.IntRange(1), help="Sampled frames between windows.  [default: half a clip]")
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Labels to print per window.")
@click.option("--save", metavar="FILE", help="Write the video with the labels drawn.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads.  [default: every core]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per window.")
def command(bundle: str, video: str, hop: int | None, top: int, save: str | None, threads: int, as_json: bool) -> None:
    """Print labels with scores for each window of VIDEO (a file, a URL or a camera)."""
    from edgeact._terminal import plain
    from edgeact.run import check_save, classify_video, save_labelled
    from edgeact.runtime import load

    if save is not None:
        check_save(Path(save), video)
    runner = load(bundle, threads=threads)
    if runner.proxy_for:
        click.echo(f"{runner.runtime} runs in place of {runner.proxy_for}: its logits are a proxy", err=True)
    hop = hop or max(1, runner.bundle.spec.frames // 2)
    predictions = []
    for prediction in classify_video(runner, video, hop=hop, top=top):
        predictions.append(prediction)
        if as_json:
            click.echo(json.dumps(prediction.to_dict()))
        else:
            scores = "  ".join(f"{plain(label)} {score:.3f}" for label, score in prediction.scores)
            click.echo(f"{prediction.start_s:7.2f} – {prediction.end_s:7.2f} s  {scores}")
    if save is not None:
        save_labelled(Path(save), video, predictions)
        click.echo(f"wrote {save}", err=True)
