package vsh

import "strings"

// SplitCommand takes apart what follows -- on the command line: assignments
// VAR=value, then a program with its arguments.
func SplitCommand(args []string) (env map[string]string, argv []string) {
	for i, arg := range args {
		name, value, ok := strings.Cut(arg, "=")
		if !ok || !isVariable(name) {
			return env, args[i:]
		}
		if env == nil {
			env = map[string]string{}
		}
		env[name] = value
	}
	return env, nil
}

func isVariable(name string) bool {
	for i, r := range name {
		letter := r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return name != ""
}
