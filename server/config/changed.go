package config

import "reflect"

// File is the name of the file, as Load or Parse was given it.
func (c *Config) File() string { return c.name }

// Line is where a value stands in the file, or the nearest thing around it that
// does. The path is as in a Problem.
func (c *Config) Line(path string) int { return positionIn(c.at, path).line }

// Changed returns the names of the top-level sections in which two configurations
// differ, in the order of Config. A list that is empty is one that is not there.
func (c *Config) Changed(other *Config) []string {
	var names []string
	a, b := reflect.ValueOf(c).Elem(), reflect.ValueOf(other).Elem()
	for i := range a.NumField() {
		name, ok := a.Type().Field(i).Tag.Lookup("yaml")
		if !ok {
			continue
		}
		x, y := a.Field(i), b.Field(i)
		if x.Kind() == reflect.Slice && x.Len() == 0 && y.Len() == 0 {
			continue
		}
		if !reflect.DeepEqual(x.Interface(), y.Interface()) {
			names = append(names, name)
		}
	}
	return names
}
