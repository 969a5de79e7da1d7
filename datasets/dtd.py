"""Describable Textures (Cimpoi et al., 2014)."""
from p2c.datasets.base import FewShotDataset, Sizes
from p2c.framework import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class DescribableTextures(FewShotDataset):
    name, folder, images = "dtd", "dtd", "images"
    split, split_id = "split_zhou_DescribableTextures.json", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"
    split_sha256 = "f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38"
    sizes = Sizes(classes=47, train=2_820, val=1_128, test=1_692)
    template = "{} texture."
