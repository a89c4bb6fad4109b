"""The joint denoisers of video and mask, and the small decoder of masks."""

from diffusers_jdm.models.mask_decoder_jdm import JDMMaskDecoder
from diffusers_jdm.models.transformer_cogvideox_jdm import JDMTransformer3DModel
from diffusers_jdm.models.unet_modelscope_jdm import JDMUNet3DConditionModel

__all__ = ["JDMMaskDecoder", "JDMTransformer3DModel", "JDMUNet3DConditionModel"]
