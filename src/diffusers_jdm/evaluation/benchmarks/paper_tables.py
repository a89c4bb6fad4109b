"""The paper's Tables 1 and 2: columns, and the numbers of all rows."""

# Table 1's columns, of its upper half and of its lower one, and Table 2's.
VBENCH_COLUMNS = {
    "multiple_objects": "Multiple Object",
    "object_class": "Object Class",
    "color": "Color",
    "scene": "Scene",
    "human_action": "Human Action",
    "spatial_relationship": "Spatial Relation",
    "overall_consistency": "Overall Consistency",
    "appearance_style": "Appearance Style",
    "temporal_flickering": "Temporal Flickering",
    "motion_smoothness": "Motion Smoothness",
    "dynamic_degree": "Dynamic Degree",
    "aesthetic_quality": "Aesthetic Quality",
    "subject_consistency": "Subject Consistency",
    "background_consistency": "Background Consistency",
    "imaging_quality": "Imaging Quality",
    "temporal_style": "Temporal Style",
}
COMPBENCH_COLUMNS = {
    "consistent_attr": "Consist Attribute Binding",
    "motion_binding": "Motion Binding",
    "action_binding": "Action Binding",
}

# The paper's numbers, in the order of the columns: Table 1 in per cent, both halves, and Table 2.
PAPER_VBENCH = {
    "VideoCrafter2": "40.66 92.55 92.92 55.29 95.00 35.86 28.23 25.13 98.41 97.73 42.50 63.13 96.85 98.22 67.22 25.84",
    "HunyuanVideo": "68.55 86.10 91.60 53.88 94.40 68.68 26.44 19.80 99.44 98.99 70.83 60.36 97.37 97.76 67.56 23.89",
    "CogVideoX-5B": "62.11 85.23 82.81 53.20 99.40 66.35 27.59 24.91 98.66 96.92 70.97 61.98 96.23 96.52 62.90 25.38",
    "Sora": "70.85 93.93 80.11 56.95 98.20 74.29 26.26 24.76 98.87 98.74 79.91 63.46 96.23 96.35 68.28 25.01",
    "Gen-3": "53.64 87.81 80.90 54.57 96.40 65.09 26.69 24.31 98.61 99.23 60.14 63.34 97.10 96.62 66.82 24.71",
    "Kling": "68.05 87.24 89.90 50.86 93.40 73.03 26.42 19.62 99.30 99.40 46.94 61.21 98.33 97.60 65.62 24.17",
    "ModelScope": "38.98 82.25 81.72 39.26 92.40 33.68 25.67 23.39 98.28 95.79 66.39 52.06 89.87 95.29 58.57 25.37",
    "ModelScope+JDM": "43.02 89.35 82.16 42.91 91.20 34.70 26.11 23.71 98.27 98.04 63.15 54.62 96.24 98.34 60.34 25.71",
    "CogVideoX-2B": "62.63 83.37 79.41 51.14 98.00 69.90 26.66 24.80 98.89 97.73 59.86 60.82 96.78 96.63 61.68 24.36",
    "CogVideoX-2B+JDM": "72.34 94.08 82.60 54.68 98.20 74.86 27.51 24.04 98.99 97.36 62.08 62.69 93.12 96.82 60.32 25.64",
}
PAPER_COMPBENCH = {
    "VideoCrafter2": "0.6182 0.2259 0.5030",
    "CogVideoX-5B": "0.6164 0.2658 0.5333",
    "Mochi": "0.5973 0.2334 0.4759",
    "Gen-3": "0.5980 0.2754 0.5233",
    "ModelScopeT2V": "0.5148 0.2408 0.3639",
    "ModelScopeT2V+JDM": "0.5684 0.2468 0.4016",
    "CogVideoX-2B": "0.6174 0.2612 0.5039",
    "CogVideoX-2B+JDM": "0.7067 0.2735 0.5690",
}
NOTES = (
    "The paper's overall consistency of CogVideoX-2B+JDM is 27.51 in Table 1 and 27.97 in Table 5, whose +4.91 % fits 27.97.",
    "The paper's base rows equal VBench's leaderboard, whose CogVideoX videos come from other tooling: compare a joint "
    "checkpoint with its base, both measured here.",
)
