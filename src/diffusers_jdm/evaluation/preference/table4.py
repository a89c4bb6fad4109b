"""The paper's Table 4, in per cent: baseline, JDM, indecision."""

TABLE_4 = {
    "Semantic Alignment (ModelScopeT2V)": "10.20 48.50 41.30",
    "Semantic Alignment (CogVideoX-2B)": "20.17 51.68 28.15",
    "Visual Quality (ModelScopeT2V)": "21.86 58.04 20.10",
    "Visual Quality (CogVideoX-2B)": "34.37 45.50 20.13",
}
