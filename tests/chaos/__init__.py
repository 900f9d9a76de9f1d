"""The reliability campaign: `launch/chaos.sh`. pytest collects only its smoke tests."""
