"""The joint denoisers of video and mask."""

from diffusers_jdm.models.transformer_cogvideox_jdm import JDMTransformer3DModel
from diffusers_jdm.models.unet_modelscope_jdm import JDMUNet3DConditionModel

__all__ = ["JDMTransformer3DModel", "JDMUNet3DConditionModel"]
