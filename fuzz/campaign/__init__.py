"""A campaign: worker processes that fuzz with Atheris, and a supervisor that keeps what they find.

Everything worth keeping is on the disk the moment it is known, so that killing a campaign at any instant loses
nothing found; see ``store`` for the folder.
"""
