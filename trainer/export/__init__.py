"""`python -m trainer.export RUN FOLDER`: a run's weights as a folder that other programs open."""
