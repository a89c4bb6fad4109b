"""The cards of checkpoints that do not exist: they say so, claim nothing, and are what the script makes now."""

import pytest
from huggingface_hub import ModelCard
from small_scripts import ROOT, script

cards, CARDS = script("planned_cards"), ROOT / "model_cards"
PARAMETERS = {"jdm-cogvideox-2b": 1_694_029_696, "jdm-text-to-video-ms-1.7b": 1_411_256_904}  # they round to Table 6's


@pytest.mark.parametrize("name", cards.planned())
def test_planned_card(name, tmp_path):
    path = cards.planned_card(name, tmp_path)
    assert path.read_text() == (CARDS / path.name).read_text(), "run examples/planned_cards.py"
    card = ModelCard.load(path)
    assert card.text.index("does not exist yet") < card.text.index("## Load it")
    assert "None were measured" in card.text and card.data.eval_results is None
    assert f"{PARAMETERS[name]:,} parameters" in card.text
    assert card.data.base_model == cards.repo_of(cards.planned()[name])
    assert {path.stem for path in CARDS.iterdir()} == {*cards.planned()}
