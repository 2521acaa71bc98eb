"""What tests share: launches, pools of ranks, models, mutations, readers of what a run leaves."""
