"""Raw text -> token store on disk. Imports neither torch nor `training`."""
