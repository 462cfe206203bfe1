"""What a model gets of a video: a clip, its salient tokens, its mask, its augmentation."""
