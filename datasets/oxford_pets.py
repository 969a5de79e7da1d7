"""Oxford-IIIT Pets (Parkhi et al., 2012): 37 breeds of cats and dogs."""
from p2c.datasets.base import FewShotDataset, Sizes
from p2c.framework import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class OxfordPets(FewShotDataset):
    name, folder, images = "oxford_pets", "oxford_pets", "images"
    split, split_id = "split_zhou_OxfordPets.json", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"
    split_sha256 = "d7f3ffe65b3919f95132e51422894ae18686b83c331fd8c0adcdc3dc2de6301e"
    sizes = Sizes(classes=37, train=2_944, val=736, test=3_669)
    template = "a photo of a {}, a type of pet."
