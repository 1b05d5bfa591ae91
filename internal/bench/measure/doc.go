// Package measure is what the tools that measure have in common: the processor
// time of processes, medians and quantiles, the machine they ran on, and tables
// of numbers.
package measure
