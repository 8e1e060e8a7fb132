"""A map of features in two dimensions, to look at: t-SNE from the first two principal components.

Van der Maaten, Hinton. Visualizing Data using t-SNE. JMLR 2008. https://www.jmlr.org/papers/v9/vandermaaten08a.html
Near rows stay near; distances, directions and the sizes of groups mean nothing.
"""

from torch import Tensor

PERPLEXITY = 30  # about as many neighbours as each row keeps; the paper's range is 5 to 50


def scatter(features: Tensor) -> tuple[list[float], list[float]]:
    """Features (N, D), N at least 4 and D at least 2, not all alike, to x and y (N,), rounded."""
    from sklearn.manifold import TSNE  # here, because to import it takes seconds
    from threadpoolctl import threadpool_limits

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    with threadpool_limits(1):  # with several threads, sums differ from run to run
        tsne = TSNE(init="pca", perplexity=perplexity, random_state=0, max_iter=500, n_jobs=1)
        places = tsne.fit_transform(features.float().cpu().numpy())  # (N, 2)
    return tuple([round(float(value), 2) for value in axis] for axis in places.T)
