"""x"""


def write(folder, seed):
    pass
