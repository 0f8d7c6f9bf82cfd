// Command greeter is a small web service: the project whose pipeline job the demonstration runs.
package main

import (
	"expvar"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"go.uber.org/zap"
)

var greeted = expvar.NewInt("greetings")

// Greeting returns what the service says to name.
func Greeting(name string) string {
	name = strings.TrimSpace(name)
	if name == "" {
		name = "world"
	}
	return fmt.Sprintf("Hello, %s!", name)
}

// Service answers on / with a greeting and on /vars with how many it gave.
func Service(log *zap.Logger) http.Handler {
	router := chi.NewRouter()
	router.Use(middleware.Recoverer, middleware.Timeout(5*time.Second))
	router.Handle("/vars", expvar.Handler())
	router.Get("/", func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Query().Get("name")
		greeted.Add(1)
		log.Info("greeted", zap.String("name", name))
		fmt.Fprintln(w, Greeting(name))
	})
	return router
}

func main() {
	log := zap.Must(zap.NewProduction())
	server := &http.Server{
		Addr:              "127.0.0.1:8080",
		Handler:           Service(log),
		ReadHeaderTimeout: 5 * time.Second,
	}
	log.Fatal("stopped", zap.Error(server.ListenAndServe()))
}
