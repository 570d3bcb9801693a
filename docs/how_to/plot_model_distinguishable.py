"""
How do I check whether samples differ from data?
================================================

Train a classifier to separate both sets: ``sd.metrics.c2st`` returns its accuracy on held-out
samples, and a p-value. An accuracy of 0.5 is chance: the sets cannot be distinguished by this
classifier at this number of samples.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd

law = sd.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.02, 0.05])
data = law.sample(250, seed=0)
counts = [3, 8, 24]
tests = []
for steps in counts:
    x = sd.sample(law, 250, sde="vp", method="ddim", steps=steps, seed=1)
    tests.append(sd.metrics.c2st(data, x))
    print(f"{steps:3} evaluations: {tests[-1].accuracy:.3f}, p = {tests[-1].p_value:.2g}")

fig, ax = plt.subplots(figsize=(5, 3.2))
ax.plot(counts, [test.accuracy for test in tests], "o-", label="samples of DDIM and data")
ax.axhspan(0.5 - 2 * tests[0].stderr, 0.5 + 2 * tests[0].stderr, color="0.9", label="chance")
ax.set(xlabel="evaluations per sample", ylabel="accuracy of the classifier", ylim=(0.4, 1.02))
ax.legend()

# %%
# The band is chance, within two standard errors. Look for the number of evaluations from which on
# the accuracy is within it.
#
# **How large is the difference, and where?** Compute a distance beside its sampling floor, which is
# the distance between two sets of data. For a known mixture also compute the errors of each mode,
# in standard errors:

more = law.sample(2000, seed=2)
floor = sd.metrics.sampling_floor(sd.metrics.energy_distance, more, 250)
print(f"floor {floor.mean:.3f} ± {floor.std:.3f}")
for steps in (8, 100):
    x = sd.sample(law, 250, sde="vp", method="ddim", steps=steps, seed=1)
    modes = sd.metrics.modes(x, law)
    distance = sd.metrics.energy_distance(x, more[:250])
    print(f"{steps:3} evaluations: distance {distance:.3f}, worst mode error {modes.worst:.1f}")

# %%
# **Images.** Classify features instead of pixels: ``sd.metrics.image_features(x, labels)`` returns
# a function that computes features, and ``sd.metrics.inception_scores`` returns FID and KID.
#
# **Copies.** A model that returns its training data passes every test above.
# ``sd.metrics.nearest`` gives the distance of each sample to the training set: compare it with
# that of held-out data.

x = sd.sample(law, 250, sde="vp", steps=50, seed=1)
held_out = law.sample(250, seed=3)
for name, points in (("samples", x), ("held-out data", held_out)):
    distances, _ = sd.metrics.nearest(points, data)
    print(f"{name}: mean distance to the nearest training sample {distances.mean():.4f}")

# %%
# **Pitfalls.** A large p-value is not a proof: more samples find smaller differences. Both sets
# must have the same size. Compare with data on which the model was not trained.
#
# Reference: :doc:`metrics </metrics>`.
