"""How good a model is: metric values by scikit-learn's definitions, what to mistrust about them, pictures, one page."""
