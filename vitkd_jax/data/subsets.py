"""The classes of ImageNet's test sets, among its 1,000.

Their authors score a model over these logits only (arXiv:1907.07174,
arXiv:2006.16241), and so does timm.
"""

# Bit i stands for class i, in the order of the synsets' names; 200 are set.
_CLASSES = {
  "imagenet_a": (
    "001d301800b48a827010020812050180404804a08a8090a01c21041961284124"
    "0100008001200094201004000f000c0042c0002008b2062120c8050014000111"
    "4801406300206052130897200404100a000801c4d8aefc24888820000040000c"
    "00000080000000000000c1801430025a0b460090c0020484a048c2a840"
  ),
  "imagenet_r": (
    "0010b000a826ba83790000080082080804001080020110902000081941080000"
    "0000102000200000000006000020202222001608880400480400000008000000"
    "8811e0c20182285200608222500011e60a0936c4888cf0293b02302a984ca40d"
    "80080188880804180f08db001424020a1b4410908080008080a4c02b56"
  ),
}


def scored_classes(name: str, num_classes: int) -> tuple[int, ...] | None:
  """Classes that a dataset is scored over; None for all.

  Args:
    name: of the dataset.
    num_classes: number of its classes.
  """
  if name not in _CLASSES or num_classes != 1000:
    return None
  bits = int(_CLASSES[name], 16)
  return tuple(i for i in range(num_classes) if bits >> i & 1)
