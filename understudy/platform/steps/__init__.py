"""The steps of the pipeline: one function each, called by the KFP components and by tests alike."""
