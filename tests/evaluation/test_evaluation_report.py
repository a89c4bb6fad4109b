import base64
import json
import re
from html import unescape

import numpy as np
import PIL.Image
import pytest
from huggingface_hub import ModelCard
from small_masks import write_array

from diffusers_jdm import cli
from diffusers_jdm.evaluation.card_metrics import add_to_card, card_results
from diffusers_jdm.evaluation.masks.compare import evaluate_masks
from diffusers_jdm.evaluation.report import from_markdown, write_report
from diffusers_jdm.evaluation.shapes import COLUMNS
from diffusers_jdm.shapes.suite import METRICS

ROW = dict(zip(COLUMNS, (0.91, 0.82, 0.73, 0.64, 0.55, 0.46, 0.37, 0.28)))
SHAPES = {
    "checkpoints": {"my/base": ROW | {"mask_iou": None}, "my/<joint>": ROW},
    "null": dict.fromkeys(METRICS, 0.1),
    "ceiling": dict.fromkeys(COLUMNS, 1.0),
    "settings": {"prompts_per_group": 5, "seed": 0},
}
VBENCH = {"my/<joint>": {"color": {"score": 0.8123, "videos": 5, "file": "x"}}}
ABLATION = {
    "variants": {"direct": {"count": 0.5, "count_std": 0.1}, "jdm": {"count": 0.7, "count_std": 0.2}},
    "reasons": {"jdm_whole": {"count": 0.61, "count_std": 0.0, "seeds": [0, 2]}},
    "base": {"count": 0.4},
    "null": {"count": 0.3},
    "ceiling": {"count": 1.0},
    "steps": 9,
    "seeds": [0, 1, 2],
    "prompts_per_group": 5,
}
CARD = "---\nlicense: mit\nlibrary_name: diffusers\n---\n\n# A title\n\nText.\n"


@pytest.fixture
def run(tmp_path):
    (folder := tmp_path / "run").mkdir()
    contents = {"shapes": SHAPES, "ablation": {"families": {"cogvideox": ABLATION}}}
    contents["benchmarks"] = {"vbench": VBENCH, "t2v_compbench": {}, "paper": {}}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    mask = np.zeros((2, 8, 8), bool)
    mask[:, 2:6, 2:6] = True
    write_array(tmp_path / "true" / "clip.npy", mask)
    write_array(tmp_path / "predicted" / "clip.npy", np.roll(mask, 1, axis=1))
    evaluate_masks(tmp_path / "predicted", tmp_path / "true", report=folder / "masks.json")
    for name in ("figure", "ablation"):
        PIL.Image.new("RGB", (4, 3), "red").save(folder / f"{name}.png")
    return folder


def test_the_page_has_all_figures_and_its_pictures_inside(run):
    text = write_report(run).read_text()
    cells = [unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", text)]
    for value in (*ROW.values(), 0.8123, 12 / 20):  # the last is the masks' IoU: 4×4 pixels moved by one
        assert f"{value:.3f}" in cells
    assert {"0.500 ± 0.100", "0.700 ± 0.200", "jdm_whole, of seeds [0, 2]", "0.610 ± 0.000"} <= set(cells)
    assert "my/<joint>" in cells and "<joint>" not in text
    pictures = re.findall('<img .*?src="(.*?)"', text)
    assert base64.b64decode(pictures[0].split(",")[1]) == (run / "figure.png").read_bytes() and len(pictures) == 2
    assert not re.search(r'(?:src|href)="(?!data:)', text)  # nothing outside is asked for


def test_what_is_there_is_shown_and_videos_are_linked_if_they_lie_beside(run, tmp_path):
    (run / "figure.html").write_text("x")
    assert 'href="figure.html"' in write_report(run, run / "other.html").read_text()
    assert "href" not in write_report(run, tmp_path / "report.html").read_text()
    (tmp_path / "few").mkdir()
    (run / "masks.json").rename(tmp_path / "few" / "masks.json")
    text = write_report(tmp_path / "few").read_text()
    assert text.count("<h2>") == 1 and "Mask quality" in text


def test_damaged_files_and_folders_of_nothing_are_named(run, tmp_path):
    for content, given, message in (
        ("{", (run,), r"shapes\.json is not valid JSON"),
        ("{}", (run,), r"shapes\.json is not what the verb writes"),
        ("{}", (tmp_path,), r"holds none of shapes\.json, "),
        ("{}", (tmp_path / "missing",), "is no folder"),
        (json.dumps(SHAPES), (run, tmp_path / "nowhere/report.html"), "there is no folder .*nowhere"),
    ):
        (run / "shapes.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            write_report(*given)
        assert not (run / "report.html").exists()


def test_the_card_gets_a_model_index_and_keeps_the_rest(run, tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(CARD)
    for _ in range(2):  # the second time in place of the first
        assert cli.main(["evaluate", "report", str(run), "--card", str(path)]) in (0, None)
    card = ModelCard.load(path)
    assert card.data.license == "mit" and card.text.strip() == "# A title\n\nText."
    found = {(r.dataset_type, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert len(found) == len(card.data.eval_results) == len(COLUMNS) + 6 + 1
    assert all(found["small-world", name] == pytest.approx(value) for name, value in ROW.items())
    assert found["vbench", "color"] == 0.8123 and found["masks", "iou"] == 0.6
    assert "report.html" in capsys.readouterr().out


def test_the_card_has_the_figures_of_the_checkpoint_that_is_named(run, tmp_path):
    assert len(card_results(run, "my/base")) == len(METRICS) + 6
    (run / "masks.json").unlink()
    with pytest.raises(ValueError, match="has no figures of theirs"):
        card_results(run, "theirs")
    with pytest.raises(ValueError, match="is no model card"):
        add_to_card(tmp_path, card_results(run))
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    with pytest.raises(ValueError, match=r"metadata of .* cannot be read: [^\n]+$"):
        add_to_card(tmp_path / "README.md", card_results(run))


def test_texts_of_the_verbs_become_html():
    page = from_markdown("`a & b`: two\nlines\n\n| x | y |\n|---|---:|\n| joint, `c=True` | <1> |")
    assert page.startswith("<p><code>a &amp; b</code>: two lines</p><table>")
    assert "<th>x</th><th>y</th></tr><tr><td>joint, <code>c=True</code></td><td>&lt;1&gt;</td></tr></table>" in page
