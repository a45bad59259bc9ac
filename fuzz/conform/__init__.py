"""``vmafuzz conform``: does the machine do what the running Linux does?"""
