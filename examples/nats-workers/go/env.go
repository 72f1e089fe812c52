package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
)

// A line of a .env file: a name, and a value that is in quotes or ends where a comment begins.
var envLine = regexp.MustCompile("(?m)^[ \\t]*(?:export[ \\t]+)?([\\w.-]+)[ \\t]*=[ \\t]*" +
	"('[^']*'|\"[^\"]*\"|`[^`]*`|[^#\\n]*)[ \\t]*(?:#.*)?$")

// loadEnv takes from the file what the environment does not say. There need be no such file.
func loadEnv(file string) error {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("cannot read %s: %w", file, err)
	}
	for name, value := range parseEnv(string(text)) {
		if _, set := os.LookupEnv(name); set {
			continue
		}
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("%s in %s: %w", name, file, err)
		}
	}
	return nil
}

// parseEnv reads what Node.js reads: of a name that is there twice, the last value.
func parseEnv(text string) map[string]string {
	values := map[string]string{}
	for _, found := range envLine.FindAllStringSubmatch(strings.ReplaceAll(text, "\r\n", "\n"), -1) {
		name, value := found[1], strings.TrimSpace(found[2])
		if len(value) >= 2 && strings.ContainsRune("'\"`", rune(value[0])) && value[0] == value[len(value)-1] {
			inner := value[1 : len(value)-1]
			if value[0] == '"' {
				inner = strings.ReplaceAll(inner, `\n`, "\n")
			}
			value = inner
		}
		values[name] = value
	}
	return values
}
