package envelope

// Resealed is what writing a store anew under its current data key has done.
type Resealed struct {
	// Rows is how many were written anew.
	Rows int
	// Refused is how many were left as they are because they, or the secrets
	// in them, fail their authentication. The log has their names.
	Refused int
}
