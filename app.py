"""Open a page in your browser that shows what a network sees in a picture, and where its answer comes from.

python app.py
python app.py --checkpoint checkpoints/adam-lr0.004-bs128-seed0/version_0 checkpoints/lenet5-cifar10.ckpt
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from analysis import views
from cifar10.filters import CORRUPT
from cifar10.pictures import read_or_reason
from cifar10.records import CLASS_NAMES, FOLDER, find_test_images
from core.cli import Parser, run_program
from core.errors import SettingError, UsageError
from core.extras import require_extra
from core.signals import StopSignals
from models.prediction import RELEASED

OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "no_proxy": "127.0.0.1"}
MAX_FILE_SIZE = "30mb"
PARTS = {
    "Where the answer comes from": "Red: hiding this part makes the network less sure of its answer. Blue: surer.",
    "How the picture is prepared": "What is done to the pixels before the network gets them.",
    "What each layer makes of it": "An image for each filter, a square for each unit: the brighter, the stronger.",
}
CORRUPTIONS = [("salt and pepper", "saltpepper"), ("noise", "gaussian"), ("blur", "blur"), ("JPEG", "jpeg")]


class Network(NamedTuple):
    """A checkpoint that the page shows."""

    name: str
    classifier: Any
    logs: Path | None  # the log folder of its run, if that is found
    split: str  # that its run was judged on, "val" or "test"


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, nargs="+", default=[RELEASED], help="Checkpoint files or run folders."
    )
    parser.add_argument("--network", metavar="FILE:CLASS", help="Python file and class of your own network.")
    parser.add_argument("--data_dir", type=Path, help="Folder of CIFAR-10, for test images (default: data).")
    parser.add_argument("--port", type=int, help="Port of the page (default: the first free one from 7860 on).")
    return parser


def main() -> None:
    flags = make_parser().parse_args()
    if flags.port is not None and not 0 < flags.port < 2**16:
        raise SettingError("port", flags.port, "must be from 1 to 65535")
    require_extra("app.py", "gradio", file="requirements-app.txt")
    data = find_test_images(flags.data_dir or Path("data"))
    if flags.data_dir and not data:
        raise UsageError(f"--data_dir {flags.data_dir}: has no {FOLDER}")
    networks = [load_network(path, flags.network) for path in flags.checkpoint]
    with StopSignals(lambda: "the page is closed"), TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ.update(OFFLINE, GRADIO_TEMP_DIR=folder)  # before Gradio is imported
        serve(build_page(networks, data), flags.port)


def load_network(path: Path, network: str | None) -> Network:
    from models.checkpoint import load_checkpoint
    from models.classifier import Classifier
    from training.files import find_checkpoints, find_logs

    checkpoint = load_checkpoint(find_checkpoints(path), network)
    name = path.stem if path.is_file() else "/".join(path.resolve().parts[-2:])
    split = checkpoint.flags.get("select_on", "val")
    return Network(name, Classifier(checkpoint), find_logs(checkpoint), split)


def serve(page: Any, port: int | None) -> None:
    from gradio.themes import Default

    theme = Default(primary_hue="blue", font=["system-ui"], font_mono=["monospace"])
    alone = {"share": False, "ssr_mode": False, "run_history": False, "enable_monitoring": False}
    look = {"quiet": True, "footer_links": ["settings"], "theme": theme, "css_paths": views.CSS}
    address = {"server_name": "127.0.0.1", "server_port": port, "max_file_size": MAX_FILE_SIZE}
    try:
        page.launch(**address, **alone, **look, prevent_thread_lock=True)
    except OSError as error:
        raise UsageError("no free port" if port is None else f"--port {port}: is in use") from error
    print(f"See what it sees: {page.local_url} (Ctrl-C stops it)", flush=True)
    page.block_thread()


def build_page(networks: Sequence[Network], data: Path | None) -> Any:
    import gradio as gr

    def look(picture: Any, noise: float, blur: float, jpeg: int, severity: int, kind: str) -> list[str]:
        standard = (kind, CORRUPT[kind][severity - 1] if severity else 0)
        levels = [standard, ("gaussian", noise), ("blur", blur), ("jpeg", jpeg)]
        classifiers = {network.name: network.classifier for network in networks}
        return views.show_parts(classifiers, picture[0], picture[1], levels) if picture else ["", "", "", ""]

    def take(event: gr.EventData) -> tuple[Any, Any]:
        return data and views.read_example(data, event.pick), gr.Tabs(selected="picture")

    with gr.Blocks(title="See what it sees", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown("# See what it sees\nHow a network gets from 32 x 32 pixels to one of ten answers.")
        picture = gr.State()  # a visitor's: uint8 [32, 32, 3], and its class, if that is known
        with gr.Tabs() as tabs:
            with gr.Tab("A picture", id="picture"), gr.Row():
                with gr.Column(scale=1, min_width=300):
                    build_choice(networks[0], data, picture, lambda sheet: sheet.pick(take, None, [picture, tabs]))
                    damage = build_damage()
                with gr.Column(scale=2, min_width=300):
                    gr.Markdown("## 3. See the answer, and how it comes about")
                    parts = [gr.HTML()]
                    for title, text in PARTS.items():
                        with gr.Accordion(title):
                            gr.Markdown(text)
                            parts.append(gr.HTML())
            with gr.Tab("Its training"):
                for network in networks:
                    build_run(network, data, lambda sheet: sheet.pick(take, None, [picture, tabs]))
        page.load(lambda: data and views.read_example(data, "test/0"), None, picture)
        changes = [picture.change, *(each.change for each in damage)]
        gr.on(changes, look, [picture, *damage], parts, trigger_mode="always_last", show_progress="hidden")
    return page


def build_choice(network: Network, data: Path | None, picture: Any, take: Any) -> None:
    import gradio as gr

    def read(file: Any) -> Any:
        path = file["composite"] if isinstance(file, dict) else file  # a drawing has layers, too
        pixels = read_or_reason(Path(path), "crop") if path else "nothing is drawn"
        if isinstance(pixels, str):
            raise gr.Error(escape(pixels), duration=None, title="No picture", print_exception=False)
        return pixels, None

    gr.Markdown("## 1. Choose a picture")
    with gr.Tabs():
        with gr.Tab("Test set"):
            label = gr.Dropdown(list(CLASS_NAMES), value="cat", label="Pictures of", type="index")
            wrong = gr.Checkbox(label=f"Only those that {network.name} gets wrong")
            show = partial(views.show_class, network.classifier, data)
            take(gr.HTML(show, inputs=[label, wrong], js_on_load=views.PICK))
        with gr.Tab("Your picture"):
            file = gr.File(label=f"A picture of any size, up to {MAX_FILE_SIZE.upper()}; its middle square is used")
            file.upload(read, file, picture).then(lambda: None, None, file)  # ready for the next
        with gr.Tab("Draw"):
            pad = gr.Sketchpad(type="filepath", format="png", image_mode="RGB", canvas_size=(320, 320), layers=False)
            pad.change(read, pad, picture)


def build_damage() -> list[Any]:
    import gradio as gr

    gr.Markdown("## 2. Make it harder")
    damage = [
        gr.Slider(0, 0.3, 0, step=0.01, label="Noise"),
        gr.Slider(0, 3, 0, step=0.1, label="Blur"),
        gr.Slider(5, 100, 100, step=1, label="JPEG quality (100: off)"),
        gr.Slider(0, 5, 0, step=1, label="Severity of this corruption"),
        gr.Dropdown(CORRUPTIONS, label="Corruption of the benchmark CIFAR-10-C"),
    ]
    gr.Button("Undo all").click(lambda: [0, 0, 100, 0, "saltpepper"], None, damage)
    return damage


def build_run(network: Network, data: Path | None, take: Any) -> None:
    import gradio as gr

    gr.Markdown(views.read_trend(network.name, network.logs))
    if (logs := network.logs) is None:
        return
    with gr.Row():
        for what, title in views.CURVES.items():
            gr.LinePlot(views.read_curves(logs, what), "epoch", what, color="images", title=title, min_width=300)
    confusion, rows = views.read_confusion(logs), views.read_predictions(logs)
    if confusion is None or rows is None:
        gr.Markdown(views.NO_PREDICTIONS)
        return

    def show_cell(event: gr.SelectData) -> tuple[str, str]:
        true, predicted = event.row_value[0], confusion.columns[event.index[1]]
        chosen = rows[(rows["true class"] == true) & (rows["predicted class"] == predicted)]
        return f"## {true} as {predicted}", views.show_predicted(data, network.split, chosen)

    gr.Markdown("## Confusion matrix\nRows: what it is. Columns: what the network says. Click a number.")
    table = gr.Dataframe(confusion, interactive=False)
    heading = gr.Markdown("## Its most confident mistakes")
    mistakes = rows[rows["true class"] != rows["predicted class"]]
    sheet = gr.HTML(views.show_predicted(data, network.split, mistakes), js_on_load=views.PICK)
    table.select(show_cell, None, [heading, sheet])
    take(sheet)


if __name__ == "__main__":
    sys.exit(run_program(main))
