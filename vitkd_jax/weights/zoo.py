"""A table of the known models and their published weights."""

from vitkd_jax.models import backbones, cait, variants


def table() -> str:
  """The known models, one per line, with the published weights below each."""
  lines = [
    f"{'model':34}{'width':>6}{'depth':>6}{'heads':>6}{'patch':>6}{'px':>5}"
    "  tokens         gelu  LayerScale  crop        images"
  ]
  for name, variant in variants.NAMED.items():
    model = backbones.make_model(variant=name)
    if isinstance(model, cait.CaiT):
      tokens = f"cls in last {model.class_depth}"
    else:
      tokens = "cls" + ("+dist" if model.distilled else "")
      tokens += f"+{model.registers} reg" if model.registers else ""
    scale = model.layerscale_init is not None
    deit = (variant.mean, variant.std) == variants.IMAGENET_MEAN_STD
    lines.append(
      f"{name:34}{model.width:6}{model.depth:6}{model.num_heads:6}"
      f"{model.patch_size[0]:6}{variant.image_size:5}  {tokens:15}"
      f"{model.gelu:6}{'yes' if scale else 'no':12}"
      f"{variant.crop_pct:g} {variant.interpolation:9}"
      + ("ImageNet mean/std" if deit else "in [-1, 1]")
    )
    for tag, top1 in variant.published.items():
      crop = variants.get(f"{name}.{tag}").crop_pct
      score = "no head" if top1 is None else f"top-1 {top1:.2f} %"
      lines.append(f"    timm/{name}.{tag}: {score}, crop {crop:g}")
  sizes = ", ".join(variants.SIZES)
  lines += [
    "",
    "Weights are named as on the Hugging Face hub; top-1 on ImageNet-1k as in",
    "timm's results-imagenet.csv. A size alone, or with a patch (S/16), is",
    f"big_vision's model: {sizes}.",
    "A CaiT is read as a teacher or to be evaluated; its CLS token is in the",
    "last blocks alone. RegNetY is not a transformer and cannot be read.",
  ]
  return "\n".join(lines)
