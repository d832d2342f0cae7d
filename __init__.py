"""Find the circuit, cut it, prove it: relevance, pruning and correction of Llama and OPT.

Importing this package loads no torch: public names are looked up when first used. They stand in
`__init__.pyi`.

>>> import excise
>>> excise.__all__[:3]
['Attribution', 'Batch', 'Circuit']
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
