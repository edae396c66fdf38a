"""The paper's tables, figures and sentences, ours beside the published ones."""
