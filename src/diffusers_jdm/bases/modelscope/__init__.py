"""ModelScope text-to-video."""

CLASSES = {"ModelScopeJDMPipeline": "pipeline_modelscope_jdm", "JDMUNet3DConditionModel": "unet_modelscope_jdm"}
