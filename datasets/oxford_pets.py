"""Oxford-IIIT Pets (Parkhi et al., 2012): 37 breeds of cats and dogs."""
from p2c.datasets.base import FewShotDataset
from p2c.framework import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class OxfordPets(FewShotDataset):
    folder, images, split = "oxford_pets", "images", "split_zhou_OxfordPets.json"
    split_id = "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"
    template = "a photo of a {}, a type of pet."
