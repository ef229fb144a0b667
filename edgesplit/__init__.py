"""edgesplit: split a Hugging Face model over the machines you have. The folders are the paper's parts; see docs/."""
