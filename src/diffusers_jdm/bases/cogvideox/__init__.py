"""CogVideoX-2B and -5B."""

CLASSES = {"CogVideoXJDMPipeline": "pipeline_cogvideox_jdm", "JDMTransformer3DModel": "transformer_cogvideox_jdm"}
