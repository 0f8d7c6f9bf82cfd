// Command greeter is a small web service: the project whose pipeline job the demonstration runs.
package main

import (
	"fmt"
	"log"
	"net/http"
	"strings"
)

// Greeting returns what the service says to name.
func Greeting(name string) string {
	name = strings.TrimSpace(name)
	if name == "" {
		name = "world"
	}
	return fmt.Sprintf("Hello, %s!", name)
}

func handler(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintln(w, Greeting(r.URL.Query().Get("name")))
}

func main() {
	http.HandleFunc("/", handler)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
