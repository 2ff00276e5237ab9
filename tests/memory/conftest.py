import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small cost more to share out than to multiply, and each thread has workspaces no trace sees."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
