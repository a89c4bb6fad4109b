"""A base that is not in the package: Wan's architecture, small."""

CLASSES = {"WanLikeJDMPipeline": "base", "WanLikeJDMTransformer": "base"}
