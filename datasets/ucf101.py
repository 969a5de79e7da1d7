"""UCF101 (Soomro et al., 2012): actions, each seen in the middle frame of a video."""
from p2c.datasets.base import FewShotDataset, Sizes
from p2c.framework import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class UCF101(FewShotDataset):
    name, folder, images = "ucf101", "ucf101", "UCF-101-midframes"
    split, split_id = "split_zhou_UCF101.json", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"
    split_sha256 = "d78cb834f7c5792ceaff2c5ee2d7c76a9e4086e48a3a6b01232989d29cbefdd8"
    sizes = Sizes(classes=101, train=7_639, val=1_898, test=3_783)
    template = "a photo of a person doing {}."
