"""Many devices and many hosts: the mesh, shardings, placement, the processes of a run."""
