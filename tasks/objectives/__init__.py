"""Unsupervised objectives as seqio preprocessors: cut text, corrupt it, make inputs and targets.

    documents   cut documents into pieces, join them, cut them into segments
    masks       which tokens of a segment are noise: (length, noise_density, seeds) -> bool
    fills       one side of an example: (tokens, noise_mask, vocabulary, seeds) -> int32
    denoising   segments, a mask and two fills -> examples; `unsupervised`, a chain that gin chooses
    chains      T5's objectives, ready to use
    ul2         UL2's mixture of denoisers
    text        objectives on text, before it is tokenized
    rows        how many segments are worked on at once
    names       what gin files call them

Source of all but UL2: "Exploring the Limits of Transfer Learning" (https://arxiv.org/abs/1910.10683), sections 3.1.4
and 3.3. `t5x_lite.tasks.preprocessors` has all of it under one roof, under the names of `t5.data.preprocessors`.
"""
