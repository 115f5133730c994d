"""Who reads what, when: plans of epochs, and the datasets and callbacks that follow them."""
