"""Caltech 101 (Fei-Fei et al., 2004): objects; Faces_easy and the background class are left out."""
from p2c.datasets.base import FewShotDataset, Sizes
from p2c.framework import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class Caltech101(FewShotDataset):
    name, folder, images = "caltech101", "caltech-101", "101_ObjectCategories"
    split, split_id = "split_zhou_Caltech101.json", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"
    split_sha256 = "52ce83205ff8ff8a1a18119aad6376120ae35c36e783a984bc560cbf10e73fa5"
    sizes = Sizes(classes=100, train=4_128, val=1_649, test=2_465)
