"""The fraud rules that come with the platform: one file each. Drop one more here, and it runs."""
