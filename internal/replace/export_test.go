package replace

import "os"

// Watched is how, with the name of each step told before it is done as always.
// An error of told is the step's.
func (h How) Watched(told func(step, name string) error) How {
	h.steps = &steps{
		sync: func(f *os.File) error {
			if err := told("sync", f.Name()); err != nil {
				return err
			}
			return f.Sync()
		},
		rename: func(from, to string) error {
			if err := told("rename", to); err != nil {
				return err
			}
			return os.Rename(from, to)
		},
		folder: func(dir string) error {
			if err := told("folder", dir); err != nil {
				return err
			}
			return Folder(dir)
		},
	}
	return h
}
