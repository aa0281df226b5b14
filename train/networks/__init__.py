"""Building blocks of the methods: backbones, similarity, warps, ImageNet weights."""
