"""Tests that launch real ranks, as a user does."""
