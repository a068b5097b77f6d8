"""Train LeNet-5 on CIFAR-10, then test the best epoch once.

python train.py --optimizer adam
python train.py --config coursework --seed 1
python train.py --optimizer adam --find_lr
"""

import sys
from pathlib import Path
from typing import Any

import psutil
import yaml

from analysis.diagnosis import sentences
from analysis.reports import HTML
from core.cli import Parser, run_program
from core.errors import UsageError
from core.shell import find_script, format_command
from training.config import GROUPS, RunConfig, check_files
from training.files import RunResult, find_checkpoints
from training.hints import HINTS


def train(config: RunConfig | None = None, **flags: Any) -> RunResult:
    """Train as the command does; `training.run.train` has the arguments and errors."""
    from training import run

    return run.train(config, **flags)


def format_summary(result: RunResult) -> str:
    """Return the lines that end a run."""
    lines: dict[str, object] = {"test accuracy": f"{result.test_acc:.2%}"}
    lines["wall time"] = f"{result.seconds:.1f} s, {result.images_per_second:,.0f} images/s"
    if result.trend:
        lines |= sentences(result.trend)
    if result.log_dir:
        lines |= {"logs": result.log_dir, "report": result.log_dir / HTML, "checkpoint": result.checkpoint}
        lines["next"] = format_command("tensorboard", "--logdir", result.log_dir.parent.parent)
        lines["then open"] = "http://localhost:6006/?smoothing=0#timeseries"
    return "\n".join(f"{name:<15}{value}" for name, value in lines.items())


def make_parser() -> Parser:
    parser = Parser(__doc__, HINTS, usage="%(prog)s [flags]")
    parser.add_config(
        RunConfig, "YAML file of flags: a run's config.yaml, or a recipe, such as best for recipes/best.yaml."
    )
    parser.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="Go on with a stopped run: its folder of checkpoints or logs."
    )
    parser.add_argument(
        "--find_lr", action="store_true", help="Only run a learning-rate range test, and suggest a rate."
    )
    parser.add_argument("--print_config", action="store_true", help="Only print all flags as YAML, for --config.")
    for group in GROUPS:
        parser.add_settings(group)
    return parser


def main() -> None:
    started = psutil.Process().create_time()
    flags = vars(make_parser().parse_args())
    resume, finding, printing = (flags.pop(name) for name in ("resume", "find_lr", "print_config"))
    if finding and resume:
        raise UsageError("--find_lr: not with --resume")
    result = None
    if resume:
        from training.resume import find_result, read_run_to_resume  # take PyTorch, which takes seconds to import

        config, resume = read_run_to_resume(find_checkpoints(resume), flags)
        result = find_result(config, resume)
    else:
        config = RunConfig(**flags)
        if not printing:
            check_files(config)
    if printing:
        print(yaml.safe_dump(config.plain(), sort_keys=False), end="")
    elif finding:
        find_lr(config)
    else:
        print(format_summary(result or train(config, resume=resume, started=started)))


def find_lr(config: RunConfig) -> None:
    """Test learning rates, and print what the test suggests."""
    from training.lr_finder import find_lr

    lr, picture = find_lr(config)
    again = [argument for argument in sys.argv[1:] if argument not in ("--find_lr", "--find-lr")]
    print(f"suggested      {lr:g}\npicture        {picture}")
    print(f"next           {format_command('python', find_script('train.py'), *again, '--lr', f'{lr:g}')}")


if __name__ == "__main__":
    sys.exit(run_program(main))
