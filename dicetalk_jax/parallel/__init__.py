"""Many devices and many hosts: the mesh, what is sharded over it and how, and who takes part."""
